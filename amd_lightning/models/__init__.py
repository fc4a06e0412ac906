"""Teachers and students: built or loaded, adapted, aligned, saved, and the policies of their families."""
