"""What Metaflow finds here: the decorator ``tachograph``."""

STEP_DECORATORS_DESC = [("tachograph", ".tachograph_decorator.TachographDecorator")]
