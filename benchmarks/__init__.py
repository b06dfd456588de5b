"""What search, learning and simulation cost, beside what they are compared with."""
