"""placeholder for first run"""
def contraction_blocks(schedule): return None
def schedule_contraction(schedule, found, target): pass
