"""The learned parts: generators, discriminators and their losses. A network never sees a file, a header or a config."""
