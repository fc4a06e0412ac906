"""What a run will take: parameters, floating-point operations and memory, as functions of plain numbers."""
