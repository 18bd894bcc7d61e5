{{ config(pre_hook="insert into runs values (2)") }}
select id, customer, amount from {{ ref('raw_orders') }}
