"""The crash-recovery suite: backlogs of many sizes, kill -9, and what it takes to deliver again.

`cases.py` says what is measured, `daemons.py` starts and kills brokers, `runs.py` does one case on
one broker, `latency.py` sets confirms beside the disk alone, `session.py` goes through all of it and keeps
what came out, `page.py` and `plots.py` make docs/recovery.md of it.
"""
