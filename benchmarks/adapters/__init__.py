"""One module per engine: how its users load a model and call it. Nothing here is imported by the parent process."""
