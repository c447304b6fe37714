"""Presets: each built-in one compiles and puts its credential where the documentation shows it; merging; faults; rights."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import pytest

from addons.authority import Authority
from addons.credentials import Credential
from addons.head import RequestHead
from addons.injection.build import build_with_credential
from addons.injection.places import plan_of
from policies import Denial, FaultError, Grant, Policy, Question, Rights, load_policy, policy_schema
from policies.document import Scalar, Sequence, parse
from policies.document import Mapping as MappingNode
from policies.preset import UNTESTED, Example, Preset, built_in, built_in_names, built_in_text
from policies.rights import read_rights
