class Cancellations:
    def __init__(self, settings):
        pass

    def refresh(self):
        pass

    def cancelled(self, a, b):
        return False

    def close(self):
        pass
