"""Small projects, generated, and the law of equivalence held against each of them.

:mod:`.projects` writes the projects, :mod:`.running` makes the twins, runs and compares.

The reference is plain ``migrate`` on a twin in sync, and keys are compared as they are. Where the
migrations themselves put a sequence behind, plain ``migrate`` may fail with a collision on every
database, or lose rows in silence: there safemigrate may do better, and is held to nothing else.
"""
