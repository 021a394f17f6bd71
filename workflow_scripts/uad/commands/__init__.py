"""What a person calls: ``uad <verb>``, a file per verb, each with ``arguments`` and ``run``."""
