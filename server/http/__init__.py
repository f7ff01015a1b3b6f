"""The management API and metrics over HTTP, on `broker/operations.py` alone.

Everything runs on the loop of the broker. Promises that nothing here holds up that loop for longer
than some milliseconds: listings are gathered, sorted and encoded in slices (pace.py); bodies,
connections and waits are bounded (serve.py, ask.py).
"""
