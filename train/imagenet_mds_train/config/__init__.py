"""The training configuration: its schema, how it is read, and how mistakes in it are explained."""
