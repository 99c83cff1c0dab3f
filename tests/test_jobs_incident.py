"""Incidents travel in checkpoints."""

import json

from jobs.incident import Incident


def test_an_incident_comes_back_equal_also_from_a_newer_program():
    incident = Incident(kind="healed", step=3, message="half the micro-batch", numbers={"micro_batch": 2.0})
    data = json.loads(json.dumps(incident.to_json()))
    assert Incident.from_json(data) == incident
    assert Incident.from_json(data | {"colour": "red"}) == incident
