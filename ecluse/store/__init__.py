"""The training store: Delta tables in a folder or an object store, and what each of them knows of its topics' offsets."""
