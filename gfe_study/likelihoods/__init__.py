"""What an observation is, and how far it is from what the decoder says. One file each; listed in the registry."""
