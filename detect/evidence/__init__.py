"""Evidence that a stranger can recompute: plan, scores, opening, claim, and their verification."""
