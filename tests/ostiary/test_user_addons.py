"""Loading users' addons: where a module comes from, what its constructor gets, and every fault with its place."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from addons.clock import SystemClock
from addons.stages.user_addons import MITMPROXY_HOOKS, HookTimeout, Runner
from addons.user_addon import HOOKS, NOT_OFFERED, UserAddon
from ostiary.settings import load_settings, load_to_run
from ostiary.user_addons import AddonFailed, done, running
from policies import FaultError
from tests.harness.ostiary_process import command
from tests.ostiary.test_settings import BASE, POLICY

GOOD = """
class Good:
    def __init__(self, **options):
        self.options = options
    def requestheaders(self, flow):
        return self.options
class Bare:
    def __init__(self, word, times=1): self.word, self.times = word, times
    def response(self, flow): pass
def function(): pass
class Empty: pass
class Whole:
    def request(self, flow): pass
    def load(self, loader): pass
    def tls_start_client(self, tls): pass
    def requestheaders(self, flow): pass
class Slip:
    def request_headers(self, flow): pass
    def response(self, flow): pass
class Nest:
    def __init__(self): self.addons = []
    def response(self, flow): pass
class Raises:
    def __init__(self, key): raise ValueError(key)
    def response(self, flow): pass
class Exits:
    def __init__(self): raise SystemExit(0)
    def response(self, flow): pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.policy.yaml").write_text(POLICY)
    (tmp_path / "mine.py").write_text(GOOD)
    return tmp_path


@pytest.fixture(autouse=True)
def modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("ostiary_addon_", "their_")):
            del sys.modules[name]


def load(folder: Path, addons: str) -> tuple[UserAddon, ...]:
    path = folder / "ostiary.yaml"
    path.write_text(BASE + f"addons: {addons}\n")
    return load_to_run(path, {})[2]


def faults(folder: Path, addons: str) -> list[str]:
    with pytest.raises(FaultError) as error:
        load(folder, addons)
    return [str(fault).replace(str(folder), "") for fault in error.value.faults]


def test_a_file_and_its_options(folder: Path) -> None:
    options = 'options: {a: 1, b: "1", c: [true, 0.5, x], d: {e: false}, f: -3, g: 1e3}'
    (addon,) = load(folder, f"[{{addon: ./mine.py:Good, {options}, timeout: 250ms}}]")
    assert (addon.name, addon.timeout_s, list(addon.hooks)) == ("./mine.py:Good", 0.25, ["requestheaders"])
    assert addon.hooks["requestheaders"](None) == {
        "a": 1,
        "b": "1",
        "c": [True, 0.5, "x"],
        "d": {"e": False},
        "f": -3,
        "g": "1e3",
    }


def test_one_file_is_loaded_once(folder: Path) -> None:
    (folder / "mine.py").write_text(GOOD + "import builtins\nbuiltins.cnry = getattr(builtins, 'cnry', 0) + 1\n")
    import builtins

    one, two = load(folder, "[mine.py:Good, {addon: mine.py:Bare, options: {word: a}}]")
    assert (one.name, two.name, builtins.cnry) == ("mine.py:Good", "mine.py:Bare", 1)  # type: ignore[attr-defined]  # the addon puts it there
    del builtins.cnry  # type: ignore[attr-defined]  # the addon puts it there


def test_the_folder_of_a_file_stands_before_nothing(folder: Path) -> None:
    """Otherwise a `json.py` beside the addon would be everybody's json."""
    before = sys.path[:]
    (folder / "json.py").write_text("raise RuntimeError('shadowed')\n")
    (folder / "mine.py").write_text("import json\nassert json.dumps\n" + GOOD)
    load(folder, "./mine.py:Good")
    assert sys.path == before
    assert "mine" not in sys.modules


def test_an_installed_module_but_not_one_of_the_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    (site / "their_package").mkdir(parents=True)
    (site / "their_package" / "__init__.py").touch()
    (site / "their_package" / "addon.py").write_text(GOOD)
    (folder / "their_local.py").write_text(GOOD)
    monkeypatch.chdir(folder)
    # As `python -m` makes it: the working folder stands first.
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path, str(site)])
    assert load(folder, "their_package.addon:Good")[0].name == "their_package.addon:Good"
    (fault,) = faults(folder, "their_local:Good")
    assert "no module 'their_local' is installed" in fault
    (fault,) = faults(folder, "their_package.adon:Good")
    assert "no module 'their_package.adon' is installed" in fault


@pytest.mark.parametrize(
    ("addons", "said"),
    [
        ("mine.py", "/ostiary.yaml:8:9: 'mine.py' names no addon (write ./my_addon.py:MyClass"),
        ("[./none.py:Good]", "/ostiary.yaml:8:10: addon ./none.py:Good: /none.py is no file that can be read (paths are"),
        ("no_such_module:Good", "no module 'no_such_module' is installed (install it, or name a file"),
        ("./mine.py:Goud", "there is no class Goud (did you mean 'Good'?)"),
        ("./mine.py:function", "there is no class function"),
        ("./mine.py:Empty", "has no hook (define one of requestheaders, responseheaders, response, error)"),
        ("./mine.py:Bare", "missing a required argument: 'word' (options are the constructor's keyword arguments)"),
        ("{addon: ./mine.py:Bare, options: {word: a, tmes: 2}}", "got an unexpected keyword argument 'tmes'"),
        ("{addon: ./mine.py:Raises, options: {key: cnry-x}}", "making it raised ValueError (it was raised at mine.py:"),
        ("./mine.py:Exits", "making it raised SystemExit"),
        ("./mine.py:Slip", "method request_headers is no hook, and would never be called (did you mean 'requestheaders'?"),
        ("./mine.py:Nest", "addons of addons are not run (name each in the settings)"),
        ("{addon: ./mine.py:Good, option: {a: 1}}", "unknown key 'option' in an addon (did you mean 'options'?)"),
        ("{addon: ./mine.py:Good, options: [a]}", "options of an addon must be a mapping"),
        ("{addon: ./mine.py:Good, options: {a-b: 1}}", "'a-b' is no name of an argument"),
        ("{addon: ./mine.py:Good, timeout: 60s}", "timeout of an addon lies between 1ms and 25s (write 5s)"),
        ("{addon: ./mine.py:Good, timeout: 0}", "timeout of an addon lies between 1ms and 25s"),
        ("{options: {a: 1}}", "an addon needs 'addon'"),
        ("[./mine.py:Good, ./mine.py:Good]", "addon ./mine.py:Good stands twice"),
    ],
)  # fmt: skip
def test_faults(folder: Path, addons: str, said: str) -> None:
    found = faults(folder, addons)
    assert len(found) == 1, found
    assert said in found[0]
    assert found[0].startswith("/ostiary.yaml:8:")
    assert "cnry-x" not in found[0]


def test_hooks_that_are_not_offered_say_why(folder: Path) -> None:
    found = faults(folder, "./mine.py:Whole")
    assert len(found) == 3
    for hook in ("request", "load", "tls_start_client"):
        assert any(f"the hook {hook} is not offered" in fault for fault in found)
    assert any("bodies are streamed and the request has left by then; use requestheaders" in fault for fault in found)


def test_what_does_not_import(folder: Path) -> None:
    (folder / "mine.py").write_text("def broken(:\n")
    (fault,) = faults(folder, "[./mine.py:Good, {addon: ./mine.py:Bare, options: {word: a}}]")
    assert "importing it raised SyntaxError (it was raised at line 1 of /mine.py)" in fault
    (folder / "mine.py").write_text("\nimport sys\nsys.exit('cnry-x')\n")
    (fault,) = faults(folder, "./mine.py:Good")
    assert "importing it raised SystemExit (it was raised at mine.py:3 in <module>" in fault


def test_faults_of_addons_stand_with_all_others(folder: Path) -> None:
    (folder / "a.policy.yaml").write_text("workloads: {w: {proofs: {any: true}, x: y}}\n")
    found = faults(folder, "./mine.py:Empty\nlimits: {connections: 0}")
    assert ["has no hook" in fault for fault in found].count(True) == 1
    assert any("unknown key 'x'" in fault for fault in found)
    assert any("'connections'" in fault for fault in found)


def test_only_run_and_check_load_them(folder: Path) -> None:
    (folder / "mine.py").write_text("raise RuntimeError\n")
    path = folder / "ostiary.yaml"
    path.write_text(BASE + "addons: ./mine.py:Good\n")
    assert load_settings(path, {}).addons[0].class_name == "Good"
    ran = command("check", "--config", "ostiary.yaml", cwd=folder)
    assert ran.returncode == 78
    assert b"ostiary.yaml:8:9: addon ./mine.py:Good: importing it raised RuntimeError" in ran.stderr
    ran = command("run", "--config", "ostiary.yaml", cwd=folder)
    assert (ran.returncode, ran.stdout) == (78, b"")
    (folder / "mine.py").write_text(GOOD)
    assert command("check", "--config", "ostiary.yaml", cwd=folder).returncode == 0
    assert command("env", "--shell", "sh", "--config", "ostiary.yaml", cwd=folder).returncode in {0, 1}


def test_the_hooks_are_mitmproxys() -> None:
    assert set(HOOKS) | NOT_OFFERED.keys() <= MITMPROXY_HOOKS
    assert {"tcp_message", "websocket_message", "server_connect", "dns_request", "next_layer"} <= MITMPROXY_HOOKS
    assert not set(HOOKS) & NOT_OFFERED.keys()


async def test_a_late_hook_is_left_behind() -> None:
    runner, ended = Runner(SystemClock()), asyncio.Event()

    async def clings() -> None:
        while not ended.is_set():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.set()
                await asyncio.sleep(0.05)
                raise RuntimeError("cnry-late") from None

    began = asyncio.get_running_loop().time()
    with pytest.raises(HookTimeout):
        await runner.call(UserAddon("a", {"running": clings}, 0.05), "running")
    assert asyncio.get_running_loop().time() - began < 0.5
    await asyncio.wait_for(ended.wait(), 1)
    await asyncio.sleep(0.1)  # its exception is seen by nobody


async def test_life() -> None:
    seen: list[str] = []

    def fails() -> None:
        seen.append("fails")
        raise ValueError("cnry-x")

    good, bad = (
        UserAddon("good", {"done": lambda: seen.append("good")}),
        UserAddon("bad", {"running": fails, "done": fails}),
    )
    with pytest.raises(AddonFailed, match=r"addon bad failed in running: ValueError at test_user_addons\.py"):
        await running((good, bad), SystemClock())
    await done((bad, good), SystemClock())
    assert seen == ["fails", "fails", "good"]
