"""The scoreboard: every attack of the zoo against every detector, cell by cell."""
