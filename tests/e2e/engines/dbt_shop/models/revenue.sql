select country, sum(amount) as amount
from {{ ref('orders') }} join {{ ref('customers') }} on customer = name
group by country
