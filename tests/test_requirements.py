"""Everything that gets installed is pinned, so that an audit sees it."""

import importlib.metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from processes import ROOT

LINES = (ROOT / "requirements.txt").read_text() + (ROOT / "requirements-servers.txt").read_text()
PINNED = [Requirement(line) for line in LINES.splitlines() if not line.startswith("#")]
INSTALLED = [requirement.name for requirement in PINNED if not requirement.marker or requirement.marker.evaluate()]


def test_every_requirement_is_pinned_to_one_version():
    for requirement in PINNED:
        (version,) = requirement.specifier
        assert version.operator == "=="


@pytest.mark.parametrize("name", INSTALLED)
def test_what_a_requirement_needs_in_turn_is_pinned_too(name):
    needed = map(Requirement, importlib.metadata.requires(name) or [])
    names = {canonicalize_name(one.name) for one in needed if not one.marker or one.marker.evaluate({"extra": ""})}
    assert names <= {canonicalize_name(requirement.name) for requirement in PINNED}
