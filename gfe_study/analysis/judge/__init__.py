"""What a study says: evidence, verdicts, signs of a bad sweep."""
