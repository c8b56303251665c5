"""What the systems share: interface and contract, layers, data consistency, losses, features, and the base of raw presets."""
