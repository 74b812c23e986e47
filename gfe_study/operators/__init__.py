"""What an instrument makes of a sample: linear maps that stand before the likelihood. Listed in the registry."""
