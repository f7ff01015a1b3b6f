"""LMDB environments: how they are opened and checked, and the catalog of definitions."""
