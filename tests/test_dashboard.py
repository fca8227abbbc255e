"""The Grafana dashboard asks only for what the server exports, and for all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client", reason="the serve extra is not installed")

from visavis.serve.metrics import Metrics

DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana_live.json"


def test_every_query_names_what_is_exported():
    metrics = Metrics()
    exported = set()
    for family in metrics.registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        exported |= {family.name + s for s in suffixes.get(family.type, [""])}
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"visavis_\w+", target["expr"])
    }
    assert asked <= exported, asked - exported
    bases = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in exported}
    seen = {re.sub(r"_(bucket|total)$", "", name) for name in asked}
    assert bases <= seen, f"on no panel: {bases - seen}"
