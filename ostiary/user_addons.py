"""Loads users' addons, and sees them through the life of the process.

A file is loaded from the very path the settings name, under a module name of our own: its folder is not put on the
import path, where it could stand before a library. A module is found on the import path without the folder that
`python -m` puts first. Every fault has its place in the settings. Of an exception in an addon its type and place are told,
not its text.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from addons.boundary import place_of
from addons.clock import Clock
from addons.stages.user_addons import MITMPROXY_HOOKS, Runner
from addons.user_addon import FLOW_HOOKS, HOOKS, NOT_OFFERED, UserAddon
from ostiary.settings.model import AddonSetting
from policies.faults import Faults, nearest

_log = logging.getLogger("ostiary.addons")

_LIKE: Final = 0.85
"""How near a method's name may come to that of a hook before it is taken for a slip."""


class AddonFailed(Exception):
    """An addon's `running` failed: the process does not start."""


def load_addons(settings: Iterable[AddonSetting], faults: Faults) -> tuple[UserAddon, ...]:
    """Imports and makes every addon; what fails is a fault."""
    modules: dict[Path, ModuleType | None] = {}
    found: list[UserAddon] = []
    for setting in settings:
        module = _module(setting, modules, faults)
        made = _made(setting, module, faults) if module is not None else None
        if made is not None:
            found.append(made)
    return tuple(found)


def _module(setting: AddonSetting, modules: dict[Path, ModuleType | None], faults: Faults) -> ModuleType | None:
    try:
        if setting.file is None:
            return _import(setting.module)
        path = setting.file.resolve()
        if path not in modules:
            modules[path] = None  # a fault is told once
            modules[path] = _from_file(path, len(modules))
        return modules[path]
    except _NotFound as error:
        faults.add(setting.place, f"addon {setting.name}: {error}", error.mend)
    except BaseException as error:  # noqa: BLE001 - code of somebody else runs here, `sys.exit` included
        faults.add(
            setting.place,
            f"addon {setting.name}: importing it raised {type(error).__name__}",
            f"it was raised at {_place(error)}",
        )
    return None


class _NotFound(Exception):
    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.mend = mend


def _from_file(path: Path, number: int) -> ModuleType:
    if not path.is_file():
        raise _NotFound(f"{path} is no file that can be read", "paths are relative to the settings file")
    name = f"ostiary_addon_{number}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise _NotFound(f"{path} is no Python file", "name a file that ends in .py")
    return _run(name, spec)


def _import(name: str) -> ModuleType:
    top = name.partition(".")[0]
    if top not in sys.modules:
        spec = importlib.machinery.PathFinder.find_spec(top, _import_path())
        if spec is None or spec.loader is None:
            raise _NotFound(f"no module {top!r} is installed", f"install it, or name a file: ./{top}.py:{'MyClass'}")
        _run(top, spec)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and name.startswith(error.name):
            raise _NotFound(f"no module {error.name!r} is installed", "look at its spelling") from None
        raise


def _import_path() -> list[str]:
    """The import path without the working folder, where `python -m` has put it."""
    first = sys.path[:1]
    return sys.path[1:] if first and first[0] in {"", os.getcwd()} else sys.path[:]  # noqa: PTH109 - as the interpreter spells it


def _run(name: str, spec: importlib.machinery.ModuleSpec) -> ModuleType:
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]  # asked by both callers
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _made(setting: AddonSetting, module: ModuleType, faults: Faults) -> UserAddon | None:
    made = getattr(module, setting.class_name, None)
    if not isinstance(made, type):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        near = nearest(setting.class_name, classes)
        faults.add(
            setting.place,
            f"addon {setting.name}: there is no class {setting.class_name}",
            f"did you mean {near!r}?" if near else "name a class that the module defines",
        )
        return None
    if not _takes(setting, made, faults):
        return None
    try:
        instance = made(**setting.options)
        hooks = {name: found for name in HOOKS if callable(found := getattr(instance, name, None))}
        names = [name for name in dir(instance) if not name.startswith("_") and callable(getattr(instance, name, None))]
    except BaseException as error:  # noqa: BLE001 - as above
        faults.add(
            setting.place,
            f"addon {setting.name}: making it raised {type(error).__name__}",
            f"it was raised at {_place(error)}",
        )
        return None
    before = len(faults.found)
    _judge_names(setting, names, hasattr(instance, "addons"), faults)
    if not any(name in hooks for name in FLOW_HOOKS) and len(faults.found) == before:
        faults.add(setting.place, f"addon {setting.name} has no hook", f"define one of {', '.join(FLOW_HOOKS)}")
    return UserAddon(setting.name, hooks, setting.timeout_s) if len(faults.found) == before else None


def _takes(setting: AddonSetting, made: Any, faults: Faults) -> bool:
    """Whether the constructor takes these options."""
    try:
        inspect.signature(made).bind(**setting.options)
    except TypeError as error:
        # The interpreter's own sentence about names; values are not in it.
        faults.add(setting.place, f"addon {setting.name}: {error}", "options are the constructor's keyword arguments")
        return False
    except ValueError:
        pass  # a class without a signature: it will say so itself
    return True


def _judge_names(setting: AddonSetting, names: Iterable[str], nested: bool, faults: Faults) -> None:
    if nested:
        faults.add(setting.place, f"addon {setting.name}: addons of addons are not run", "name each in the settings")
    for name in names:
        if name in HOOKS:
            continue
        if name in MITMPROXY_HOOKS:
            mend = NOT_OFFERED.get(name, f"hooks here are {', '.join(HOOKS)}")
            faults.add(setting.place, f"addon {setting.name}: the hook {name} is not offered", mend)
            continue
        near = difflib.get_close_matches(name, HOOKS, n=1, cutoff=_LIKE)
        if near:
            faults.add(
                setting.place,
                f"addon {setting.name}: method {name} is no hook, and would never be called",
                f"did you mean {near[0]!r}? if not, begin its name with _",
            )


def _place(error: BaseException) -> str:
    return f"line {error.lineno} of {error.filename}" if isinstance(error, SyntaxError) else place_of(error)


# --- life ---


async def running(addons: Iterable[UserAddon], clock: Clock) -> None:
    """Calls `running` of each, before a listener accepts.

    Raises:
        AddonFailed: names the addon.
    """
    runner = Runner(clock)
    for addon in addons:
        try:
            await runner.call(addon, "running")
        except Exception as error:  # noqa: BLE001 - code of somebody else
            raise AddonFailed(
                f"addon {addon.name} failed in running: {type(error).__name__} at {place_of(error)}"
            ) from None


async def done(addons: Iterable[UserAddon], clock: Clock) -> None:
    """Calls `done` of each, after the last request; a failure is logged."""
    runner = Runner(clock)
    for addon in addons:
        try:
            await runner.call(addon, "done")
        except Exception as error:  # noqa: BLE001 - the process ends all the same
            _log.error("addon %s failed in done: %s at %s", addon.name, type(error).__name__, place_of(error))
