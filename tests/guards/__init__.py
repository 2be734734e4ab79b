"""Guards of the product, each with tests that must fail once it is taken out: `python -m tests.guards [NAME ...]`."""
