"""What a run minimises: criterion, HNC, losses on maps and a teacher, from the options."""
