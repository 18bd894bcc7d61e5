{{ config(enabled=env_var('SHOP_SLOW', '') != '') }}
select count(*) as n from {{ ref('customers') }}, range(10000000) a, range(10000000) b
