"""Studies: teachers, students trained on their answers at doses, and what each test makes of the students."""
