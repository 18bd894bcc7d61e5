{{ config(enabled=env_var('SHOP_BROKEN', '') != '') }}
select * from {{ ref('revenue') }}
