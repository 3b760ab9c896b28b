"""Builds as Jobs on Kubernetes.

    order ─► names, manifest (pure) ─► api ─► Job ─► pod: fetch · build · push
                                        │              │ status     │ log
    builder ◄── follow ◄── failures (pure) ◄── watch ◄─┘            │
       └────────── log ◄────────────────────────────────────────────┘

`builder.py` is the way in. What runs in the pod is `prebinder.pod`; the two agree in `wire.py`.
Nothing here imports the `kubernetes` package until a builder starts: it costs 20 MB that one machine need not pay.
"""
