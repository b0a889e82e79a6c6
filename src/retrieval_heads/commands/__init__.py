"""The subcommands of `retrieval-heads`, a module each."""
