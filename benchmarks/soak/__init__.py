"""Hours of clients that come and go: a broker that runs long must not grow.

`visits.py` says what a client does before it leaves, `judge.py` what is growth, `session.py` lets
the clients come, looks at the broker meanwhile, and writes down what it saw.
"""
