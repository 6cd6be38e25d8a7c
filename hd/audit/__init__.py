"""The claims of the seed document, the rule of verdicts, the goals."""
