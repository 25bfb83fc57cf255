"""The five stages, each a function of what the one before gives: sign, match, verify, decide, apply."""
