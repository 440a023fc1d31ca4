"""Models as files that other programs run, class maps included."""

from timm_hnc.export.export import Exported, cost_of_maps, export_model
from timm_hnc.export.graph import MapGraph, Outputs
from timm_hnc.export.preprocessing import Preprocessing

__all__ = ['Exported', 'MapGraph', 'Outputs', 'Preprocessing', 'cost_of_maps', 'export_model']
