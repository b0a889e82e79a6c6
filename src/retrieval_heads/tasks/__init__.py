"""Tasks: what is asked, and how an answer is judged; one file each."""
