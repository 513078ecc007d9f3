"""What a report says in words: of any study, and of those that have claims to judge."""
