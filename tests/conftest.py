"""For all tests: this folder on the import path (`toy_tokenizer`), pytester, and hypothesis without a clock."""

from hypothesis import settings

pytest_plugins = ["pytester"]

# Two busy cores make any deadline a coin toss; a failure is replayed from the printed blob, not from a local database.
settings.register_profile("rh", deadline=None, database=None, print_blob=True)
settings.load_profile("rh")
