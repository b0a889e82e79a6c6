"""What a run leaves behind: records, their folder, and who answered."""
