"""The same cells under several settings of the engine: what a setting costs."""
