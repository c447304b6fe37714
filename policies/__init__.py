"""What is allowed: YAML becomes a frozen model, the model a compiled matcher, and a question a `Grant` or a `Denial`.

The only room that reads YAML. It knows nothing of proxies, stores or secrets' values.
"""

from policies.examples import run_tests
from policies.faults import Fault, FaultError, Place, nearest
from policies.grant import DefaultAction, Denial, Grant, Passage, Question
from policies.load import load_policy
from policies.matcher import Policy
from policies.rights import Rights
from policies.schema import policy_schema
from policies.sources import PolicyText, Source, load_sources, load_texts

__all__ = [
    "DefaultAction",
    "Denial",
    "Fault",
    "FaultError",
    "Grant",
    "Passage",
    "Place",
    "Policy",
    "PolicyText",
    "Question",
    "Rights",
    "Source",
    "load_policy",
    "load_sources",
    "load_texts",
    "nearest",
    "policy_schema",
    "run_tests",
]
