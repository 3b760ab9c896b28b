"""Values of the chart for tests: the least that it takes, and a table that reaches every branch of its templates."""

from __future__ import annotations

import functools
from typing import Any

LEAST: dict[str, Any] = {
    "hub": {"url": "http://proxy-public", "publicUrl": "https://hub.example.org", "tokenSecret": {"name": "hub"}},
    "config": {"registry": {"prefix": "r.example.org/binder/"}, "repositories": [{"github": "a/b"}]},
}

TABLE: dict[str, dict[str, Any]] = {
    "least": {},
    "git": {"config": {"repositories": [{"git": "https://git.example.org/course.git"}]}, "secrets": []},
    "ingress": {"ingress": {"enabled": True, "host": "b.example.org", "tlsSecret": "tls", "className": "nginx",
                            "annotations": {"a": "b"}}},
    "no host": {"ingress": {"enabled": True}},
    "gateway": {"gateway": {"enabled": True, "parentRefs": [{"name": "g"}], "hostnames": ["b.example.org"]}},
    "own registry": {"registry": {"enabled": True, "host": "192.168.0.10:30500", "command": ["docker-registry"]}},
    "monitoring": {"monitoring": {"serviceMonitor": {"enabled": True, "labels": {"a": "b"}},
                                  "prometheusRule": {"enabled": True, "labels": {"a": "b"}}}},
    "many controllers": {"controller": {"replicas": 3, "lease": True,
                                        "persistence": {"accessModes": ["ReadWriteMany"]}},
                         "config": {"ledger": {"url": "postgresql://prebinder@db/prebinder"}}},
    "no volume": {"controller": {"persistence": {"enabled": False}}},
    "own volume": {"controller": {"persistence": {"existingClaim": "mine"}}},
    "autoscaling": {"endpoint": {"autoscaling": {"enabled": True}, "podDisruptionBudget": {"maxUnavailable": "50%"}}},
    "builds apart": {"builds": {"namespace": "pb-builds", "createNamespace": True, "quota": {"pods": "20"}}},
    "prepull": {"config": {"prepull": {"enabled": True}}},
    "placed": {"endpoint": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "a", "operator": "Exists"}],
                            "affinity": {"podAntiAffinity": {}}, "priorityClassName": "system-cluster-critical",
                            "podAnnotations": {"a": "b"}, "podLabels": {"a": "b"}, "spread": False,
                            "extraEnv": [{"name": "A", "value": "b"}]},
               "image": {"digest": f"sha256:{'0' * 64}", "pullSecrets": ["pull"]}},
    "peers": {"networkPolicy": {"from": [{"namespaceSelector": {}}], "privateCidrs": ["10.0.0.0/8"],
                                "builds": {"extraEgress": [{"ports": [{"port": 9418}]}]}}},
    "no policies": {"networkPolicy": {"enabled": False}},
    "secrets": {"secrets": [{"name": "github", "secret": "prebinder-github"}], "registryCredentials": {"secret": "r"},
                "controllerToken": {"existingSecret": "t"}},
}  # fmt: skip


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """As Helm merges values: mappings by key, everything else replaced."""
    both = {**base}
    for key, value in changes.items():
        both[key] = merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
    return both


_WHOLE = ("ingress", "gateway", "own registry", "monitoring", "many controllers", "builds apart", "prepull", "placed")
TABLE["everything"] = functools.reduce(merged, (TABLE[name] for name in _WHOLE))
