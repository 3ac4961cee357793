from django.http import HttpRequest, JsonResponse

from shop.models import Product


def products(request: HttpRequest) -> JsonResponse:
    """List what the shop sells."""
    offers = Product.objects.prefetch_related("tags").order_by("name")
    return JsonResponse(
        {offer.name: sorted(tag.name for tag in offer.tags.all()) for offer in offers}
    )
