"""Backdoor attacks: what an attacker does to images, labels and training; README.md says after which papers."""
