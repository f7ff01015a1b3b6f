"""Making a damaged directory one that a broker starts on: a plan, and doing what it says."""
