"""What came out: rows, results, and the tests that say what they mean."""
