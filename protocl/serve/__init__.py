"""A model as a service: HTTP and a page around :mod:`protocl.model`.

Teaching is addition, forgetting is subtraction, and a prediction is a pure function of what is
known: :class:`protocl.model.changes.ledger.Ledger` does all three, and this room lets others ask
for it.
"""
