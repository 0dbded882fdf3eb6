"""Whatever happens on disk, and in whichever order clients load and unload: what serves is what should."""

import asyncio
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from servers import tiny_guard

from guard.errors import BundleError
from serving.config import ModelControl, ServerConfig
from serving.errors import LoadError, NotFoundError, NotReadyError
from serving.metrics import Metrics
from serving.repository import Repository
from serving.store import repository_store

VERSIONS = ("1", "2", "10")

changes = st.tuples(st.sampled_from(["good", "bad", "gone"]), st.sampled_from(VERSIONS))
calls = st.tuples(st.sampled_from(["refresh", "load", "unload"]), st.just(""))


class Expected:
    """What should serve: the same rules, for one model whose folder stays, in plain dictionaries."""

    def __init__(self):
        self.disk, self.served, self.unloaded, self.known = {}, {}, False, False

    def change(self, what, version, number):
        self.disk.pop(version, None)
        if what != "gone":
            self.disk[version] = (what, number)

    def call(self, what):
        if what == "unload":
            self.unloaded = self.unloaded or self.known
            self.served = {}
        elif what == "load" or not self.unloaded:
            self.known = True
            self.served |= {v: content for v, content in self.disk.items() if content[0] == "good"}
            if self.disk.keys() & self.served.keys():
                self.unloaded = False
                self.served = {v: content for v, content in self.served.items() if v in self.disk}


class Disk:
    """A repository of one model, whose bundles are files that say good or bad and a number."""

    def __init__(self, root):
        self.folder = Path(root) / "m"
        self.folder.mkdir()
        self.contents = {}

    def change(self, what, version, number):
        place = self.folder / version / "manifest.json"
        if what != "gone":
            place.parent.mkdir(exist_ok=True)
            place.write_text(what + " " * number)
        elif place.parent.exists():
            place.unlink()
            place.parent.rmdir()

    def open(self, folder):
        text = (folder / "manifest.json").read_text()
        if text.startswith("bad"):
            raise BundleError("bad")
        guard = tiny_guard()
        self.contents[guard] = ("good", text.count(" "))
        return guard


async def play(steps, root):
    disk, expected = Disk(root), Expected()
    config = ServerConfig(model_control=ModelControl.EXPLICIT)
    store = repository_store(Path(root), disk.open)
    repository = Repository(config, metrics=Metrics(CollectorRegistry()), store=store)
    for number, (what, version) in enumerate(steps):
        if version:
            disk.change(what, version, number)
            expected.change(what, version, number)
            continue
        with suppress(LoadError, NotFoundError):
            await (repository.refresh() if what == "refresh" else getattr(repository, what)("m"))
        expected.call(what)
        check(repository.models, expected, disk)
    await repository.close()


def check(models, expected, disk):
    served = {each.version: disk.contents[each.endpoint._guard] for each in models.served()}
    assert served == expected.served
    assert models.is_ready("m") == bool(served)
    if expected.known:
        assert models.ready == (bool(served) or expected.unloaded)
    with suppress(NotFoundError, NotReadyError):
        assert models.find("m").version == max(served, key=int)
    for entry in models.index():
        assert (entry.state == "READY") == (entry.version in served)
        assert entry.reason or expected.disk.get(entry.version) == served.get(entry.version)


@settings(max_examples=60, deadline=None)
@given(st.lists(changes | calls, max_size=14))
def test_what_serves_is_what_lies_there_as_far_as_it_is_good(steps):
    with TemporaryDirectory() as root:
        asyncio.run(play(steps, root))
