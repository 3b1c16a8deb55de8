"""What systems answer, what judges say of it, and what may be concluded from that."""
